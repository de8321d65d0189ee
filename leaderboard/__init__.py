"""Records, store, checks, runner, statistics, HTTP API, pages and client of the board (later; nothing here yet)."""
