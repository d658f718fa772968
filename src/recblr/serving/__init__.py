"""Serving: events in, recommendations out, each event in constant time.

The event log is the truth; the state of a user is a cache of it, stamped with the model it was made
by and the version of the user's events it holds.

``events`` what comes in · ``store`` what a log and a cache of states are · ``sqlite``, ``postgres``,
``redis`` where they lie · ``fold`` events into a state · ``engine`` what is done with a request ·
``app`` the HTTP side.
"""
