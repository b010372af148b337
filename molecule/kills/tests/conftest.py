from support import operations_of, pytest_collection_modifyitems

__all__ = ["pytest_collection_modifyitems"]

operations = operations_of(__file__)
