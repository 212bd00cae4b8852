"""How does text become token ids, and how do messages become a prompt?"""
