"""The zoo: faulty stores that the suite must catch, and odd ones that it must let pass.

A suite that no store fails proves nothing. Every *mutant* here has one fault, usually one of a real store; each names
the check that must find it and shows, in its *witness*, that it can be seen at all. *Angels* do nothing wrong in
unusual ways, so that the suite asks for no more than the contract does. ``test_zoo.py`` tests all of this, and ``python
-m conformance.tests.zoo.matrix`` writes down which check finds what.
"""
