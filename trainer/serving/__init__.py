"""The HTTP server: reranking protocols of other services, batching across requests, and a page to try a model.

Imports inside run down, like the package's own:

    server                              serve a run or model folder, with graceful shutdown on SIGTERM
    app                                 the routes
    guard  page                         API key, limits and access log of every request; the HTML page
    protocol                            request and response bodies
    batching                            batches of pairs from many requests, scheduled fairly
    engine  measures  settings          the model; Prometheus metrics; limits and refused requests
"""
