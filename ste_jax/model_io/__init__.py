"""How is a model of another format read as one of ours, and one of ours written for others?"""
