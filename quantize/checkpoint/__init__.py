"""What is read: model names, checkpoint folders, tensors, tokenizers, and the metadata made of them."""
