"""From what the model generated to a creative that can be published: paste, clean, judge, mark, encode, show.

    product = ProductFacts(title, selling_points, cutout=data, scale=0.7, locale="zh-CN", channel="feed")
    finished = finish(background, title, product, settings)     # finish.py; PairError: the row's reason
    finished.picture.data, .extension, .width ...               # what put_object takes
    finished.manifest_fields()                                  # status, reason, title, gates, scores ...

A row's fingerprint takes `settings.digest()` and `gates.LOOK`. The model's condition picture of the same
product is `on_white(place_product(square_frame(product_cutout(product)), scale)[0])`, with the functions of
adgen/images.py: it starts from the same square frame as the paste. report.py writes the contact sheet of a run. Numpy
and Pillow; nothing here imports torch or ray.
"""
