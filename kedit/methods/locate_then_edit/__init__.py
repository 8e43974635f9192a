"""Methods that find where a fact is kept and change those weights by a closed form."""
