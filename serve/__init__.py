"""The HTTP server, over the continuous-batching scheduler: `app` is the application, `server` runs it."""
