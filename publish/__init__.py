"""Release folders for the Hugging Face Hub: files, model card, checksums; their verification and their upload."""
