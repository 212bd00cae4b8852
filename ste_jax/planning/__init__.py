"""What would a program need on a slice that is not there?"""
