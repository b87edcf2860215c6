m
丣
