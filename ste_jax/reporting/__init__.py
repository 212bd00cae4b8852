"""What did a run do, in tables for a terminal and as one HTML file?"""
