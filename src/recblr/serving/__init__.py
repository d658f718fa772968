"""A server that takes events and answers with recommendations, each event in constant time.

The event log is the source of truth. The state of a user is derived from it; a cached state names the
model that computed it and the version of the user's events that it includes.

``server`` starts a server by its ``settings``, ``workers`` several processes. A request passes
``connections`` (limits of HTTP), ``app`` (routes, keys, errors), ``admission`` (which requests are in
work), ``operations`` (one method per operation of ``api``), ``engine`` (queue, threads) and
``processor`` (transactions, states). ``maintenance`` copies and shortens an event log.
``item_search`` finds the best items. ``user_states`` computes states by the ``model``. ``storage``
defines event log and cache; ``sqlite``, ``postgresql``, ``redis`` and ``local_cache`` implement them.
"""
