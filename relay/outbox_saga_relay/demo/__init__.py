"""`outbox-saga demo`: a shop, real orders, killed processes, and the checks that hold anyway.

The shop is a service as a user would write it: `tables` and `events`, the sagas `onboarding` and
`ordering` with their statements in `inventory`, the handlers in `bookkeeping`, put together in
`assembly` and, for a process of its own, `shop`. Around it: `provider`, the payment and mail
company the shop calls; `orders` and `generator`, where orders come from; `driver`, which runs it
all in processes and kills them (`processes`, `kills`); `facts` and `checks`, what must be true
afterwards; `report`, `progress`, `run` and `command`, how that is told.
"""
