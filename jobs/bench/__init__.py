"""`corpusmill bench`: an annotation of a job, or a fine-tuning, by corpusmill and by its peers in turn.

    job -> Workload (model, texts, window) -> rounds, each contender in a process of its own -> table, JSON, PNG

Contenders alternate within each round, because a machine changes from minute to minute; what is told is the median of
the rounds, and of the ratios within each. A peer is called as its own documentation shows it, from texts in memory to
what comes of them in memory; corpusmill goes from Parquet to Parquet through `corpusmill run`.
"""
