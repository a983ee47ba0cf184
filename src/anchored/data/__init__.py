"""From raw rows to a prepared dataset: read, made canonical, encoded, packed and stored."""
