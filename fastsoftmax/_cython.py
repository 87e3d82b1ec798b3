name = "cython"
strided = True
def why_not(): return "not written yet"
