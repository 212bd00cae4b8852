"""Which knobs does a run have, how are they read, and what identifies finished work?"""
