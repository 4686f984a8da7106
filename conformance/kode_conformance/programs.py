def program(*a):
    return ""
