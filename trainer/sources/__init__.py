"""Files of users, as DuckDB reads them: formats, columns, times, what is wrong with them."""
