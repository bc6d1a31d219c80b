"""Who a request is from: principals, the credentials that prove them, and the verdict. Knows no HTTP server."""
