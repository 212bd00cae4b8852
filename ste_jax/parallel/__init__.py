"""How is work divided over devices and processes?"""
