"""What the words mean."""

from html import escape


def chapter() -> str:
    words = {
        "IoU": "Intersection over union: the area that two boxes share, divided by the area that "
        "they cover together. 1 is a perfect fit. Where masks are compared, that of the masks.",
        "Score": "What the detector ranks its boxes by, from 0 to 1.",
        "Correct detection, true positive": "A detection that finds an object of its class with an "
        "IoU of at least 0.5 that no better scored detection has found.",
        "Agreement is not performance": "A detector that finds only easy objects can have a high "
        "correlation and a low AP. Read beta_cls beside AP and oLRP_Loc.",
        "Bounds": "The ranking of the correct detections is changed, and nothing else. They are "
        "not what a training can reach.",
        "Confidence interval": "How far a measure moves when the images are drawn anew. Two "
        "detectors whose difference has an interval around 0 may be equally good.",
    }
    items = "\n".join(f"<dt>{escape(word)}</dt><dd>{text}</dd>" for word, text in words.items())
    return f"<dl>\n{items}\n</dl>"
