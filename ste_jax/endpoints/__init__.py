"""How is a model asked that runs behind an endpoint?"""
