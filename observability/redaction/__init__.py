"""What must not enter the store: found by its shape, taken out at the door, and recorded by kind, place and length alone. Pure.

It finds what has a shape. Names, and whatever else only a reader would recognise, stay.
"""
