"""Tables, trees and blocks of text that zfsiloctl prints."""
