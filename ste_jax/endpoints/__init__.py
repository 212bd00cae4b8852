"""How is a model asked that somebody else serves?"""
