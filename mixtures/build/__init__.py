"""The stages that carry a recipe to sealed manifests.

Scan, tokenise, pack, row-level FIM, shuffle, seal; one file a stage, which holds the stage's work
item, its settings for the receipt, and its account. Belongs here: orchestration and receipts of a
build. Never: the doing itself (that is `prep`), and no stage imports another stage.
"""
