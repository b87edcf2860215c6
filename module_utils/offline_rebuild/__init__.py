"""The core of offline-rebuild: standard library only, Python >= 3.9, no Ansible."""
