from daisy import audio


def test_batches_hold_similar_lengths_within_the_limit():
    lengths = [5, 100, 7, 60, 58, 2, 61, 300]
    batches = list(audio.batch_by_length(lengths, 130))
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    assert batches == [[7], [1], [6, 3], [4, 2, 0, 5]]
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= 130
