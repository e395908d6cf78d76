"""The service: trained agents and durable banks behind HTTP, under uvicorn or on Ray Serve. See docs/serving.md."""
