"""The languages of servers: one module for each, written from the server's own documentation."""
