def program(*a): return ""
