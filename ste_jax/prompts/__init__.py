"""What is a role asked, and how is its reply read?"""
