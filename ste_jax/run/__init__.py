"""Where does everything of a run lie, and what of it is done?"""
