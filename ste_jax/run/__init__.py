"""Where does a run keep its files, and which of its work is done?"""
