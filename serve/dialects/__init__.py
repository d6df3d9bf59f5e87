"""The shapes of requests and answers: OpenAI's, llama.cpp's, Azure ML's and Text Generation Inference's."""
