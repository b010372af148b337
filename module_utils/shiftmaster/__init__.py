"""Code that the custom modules share, and that `shiftmasterctl` uses on the hosts.

Standard library only, Python 3.9 or newer, imports inside the package are relative: Ansible ships it inside each
module, and role shiftmaster copies the same files onto the hosts.
"""
