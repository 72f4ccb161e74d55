"""The one place where weights change: many adapters on the same frozen base and the same facts, trained at once.

The batch of a step is K copies of the rows, one for each adapter of the stack; every adapter has its own method,
learning rate, clipping, schedule, seed and end. Their losses share no weight, so one backward pass of the sum gives
each adapter exactly the gradient it would have alone.
"""
