from support import operations_of

operations = operations_of(__file__)
