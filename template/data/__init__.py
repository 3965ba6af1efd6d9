"""The dataset file: rows, chat templates, encoding, evaluation set and near duplicates. No torch, no network."""
