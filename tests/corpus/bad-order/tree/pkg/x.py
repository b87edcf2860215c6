x
丣
