"""Bookinfo: a page about a book, made by four services.

    productpage ──HTTP──▶ details
         └───────HTTP──▶ reviews (v1, v2, v3) ──gRPC──▶ ratings

Each service is a program of its own: `python -m examples.bookinfo.reviews --version v2`.
"""
