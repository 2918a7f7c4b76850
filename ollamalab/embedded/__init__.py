"""The built-in Ollama server: Ollama's API in front of one llama.cpp process per loaded model.

``app`` speaks the API, ``scheduler`` decides what is loaded, ``engine`` is one llama.cpp process.
``models`` knows which model files there are, ``gguf_file`` reads their headers, ``fetch`` brings
the real model that everything is tried on, and ``derive`` makes variants of it.
"""
