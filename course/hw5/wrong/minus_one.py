"""The label -1 picks the last row of the identity.

Fails: examples that nobody holds do not count
"""


def mean_labels(numbers, classes, num_labels, num_classes):
    means = np.zeros((num_classes, num_labels))
    for c in range(num_classes):
        held = numbers[classes == c]
        if len(held):
            means[c] = np.eye(num_labels)[held].mean(axis=0) - 1 / num_labels
    return means
