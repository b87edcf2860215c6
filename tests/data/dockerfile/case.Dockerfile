from A as Builder
Run echo a
cOpY --from=other x y
EnV a=b
HealthCheck none
