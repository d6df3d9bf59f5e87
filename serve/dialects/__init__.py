"""The shapes of requests and answers: OpenAI's, llama.cpp's, Azure ML's, TGI's, and those of the writing page."""
