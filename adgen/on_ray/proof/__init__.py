"""The proof job: does a model follow its users, measured on shops that nobody trained on?"""
