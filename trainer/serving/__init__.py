"""The HTTP server: reranking protocols of other services, batching across requests, and a page to try a model.

Imports inside run down, like the package's own:

    server                              serve a run or model folder, with graceful shutdown on SIGTERM
    app                                 the routes
    search                              the route that searches the corpus of a run
    scoring                             scoring the texts of one request
    guard  page                         API key, limits and access log of every request; the HTML page
    protocol                            from bodies to texts, from scores to bodies
    batching                            batches of pairs from many requests, scheduled fairly
    bodies                              request and response bodies, and their schema
    corpus                              the documents and the first stage of a run
    engine  measures  settings          the model; Prometheus metrics; limits and refused requests
"""
