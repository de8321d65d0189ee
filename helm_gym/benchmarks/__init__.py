"""``helm-gym bench``: the speed of every part, beside peers measured in the same run."""
