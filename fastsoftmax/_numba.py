name = "numba"
strided = False
def why_not(): return "not written yet"
