"""The HTTP server: the reranking protocols of other services, batches across requests, and a page to try a model.

Imports inside run down, like the package's own:

    server                              from a run or model folder to a server that ends gracefully on SIGTERM
    app                                 the routes
    guard  page                         key, limits and access log of every request; the HTML page
    protocol                            bodies and answers
    batching                            which pairs are computed together, and whose are next
    engine  measures  settings          the model; Prometheus metrics; limits and refusals
"""
