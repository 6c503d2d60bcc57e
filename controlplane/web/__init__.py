"""HTTP pages and endpoints for operators."""
